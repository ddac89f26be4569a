"""Topics of Kafka as a source, for all workers that read them: one member of a consumer group, and a topic of dead
letters.

1. `source` and `session`: the source, and one connection of it. `membership`: which group.
2. `progress`: how far one assignment is read and committed. `held`: what waits meanwhile. `commits`: commits offsets.
3. `reading` and `unreadable`: messages, and those that the driver can't parse. `screen`: what it must not inflate.
4. `inspection`: checks topics, group and rights, by what `brokers` tell; `topics_request`: one of their questions.
   `findings`: what is found, in words. `unread`: for how long messages wait. `note`: the metadata of committed offsets.
   `identities`: what outlives a topic of it. `tools`: the commands that mend what is wrong.
5. `dead_topic` and `replay`: dead letters, and how they are tried again.
"""
