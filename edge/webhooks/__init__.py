"""Webhooks (PROTOCOLS 5): from every state of a job to its receiver, never in the job's way."""
