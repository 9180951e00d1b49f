"""`/easy/…`, as programs written for a bare HeyGem server call it (PROTOCOLS 3). What jobs are the services know."""
