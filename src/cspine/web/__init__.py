"""The web application: accounts, upload, worklist and reading room."""
