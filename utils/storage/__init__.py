"""Where arrays and models lie: `store` keeps rows that are larger than memory, `hub` has model folders of others."""
