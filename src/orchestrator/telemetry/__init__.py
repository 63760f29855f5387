"""What those see who look after the service: its log lines."""
