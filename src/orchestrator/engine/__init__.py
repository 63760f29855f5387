"""What runs instances: it asks the core what to do, does it, and appends what happened."""
