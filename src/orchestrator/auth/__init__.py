"""Who calls: credentials become a Caller, with a tenant and a role."""
