"""Requests to addresses that clients name (inputs by URL, webhooks): PROTOCOLS 6, and nothing past it."""
