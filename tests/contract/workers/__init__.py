"""Programs that tests start as processes of their own: each a worker as a user would write it."""
