"""What the commands run: real servers, a fleet of node processes, the demo, the doctor, the verifier."""
