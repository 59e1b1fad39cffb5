"""Whether something on the way to a server eats the stream: measuring, and what follows from it."""
