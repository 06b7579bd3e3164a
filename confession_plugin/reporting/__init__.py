"""What a run leaves behind for people: the trace of its confessions."""
