"""What workers share that read topics of Kafka: a place in a group, and a topic of dead letters."""
