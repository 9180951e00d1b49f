"""`/v2/{endpoint}/…`, as the official `runpod` client calls it (PROTOCOLS 4). What jobs are the services know."""
