"""Images that the project renders itself, with exact masks: hands, rings, backgrounds, and defects put into photos."""
