"""What makes sessions run: turns, deadlines, readers, the committer."""
