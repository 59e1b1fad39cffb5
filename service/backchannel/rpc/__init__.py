"""The gRPC doors: thin servicers, interceptors, health, reflection, drain."""
