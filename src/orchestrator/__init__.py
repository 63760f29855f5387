"""A self-hosted orchestrator-workers service: plan, work in parallel, synthesise, and log every step."""
