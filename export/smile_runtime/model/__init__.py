"""An exported model file: what it says of itself, whether it can be trusted, and the session that runs it."""
