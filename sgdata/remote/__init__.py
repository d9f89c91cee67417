"""Remote files: hosts that may be asked, HTTP requests, retries."""
