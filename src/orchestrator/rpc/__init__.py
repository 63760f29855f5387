"""gRPC: the methods of the Orchestrator service and the server around them."""
