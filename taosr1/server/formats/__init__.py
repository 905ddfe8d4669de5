"""The request and reply formats that the server speaks. Each is a pair of pure functions around the same scores."""
