"""What `orchestra up` starts and watches: PostgreSQL, Prefect server, API, worker, model backend."""
