"""The wire's messages, generated from `protos/orchestrator/v1` when the package is built."""
