"""The door: identify, admit, route, relay, measure."""
