"""`cachebus doctor`: how the servers are set up, and what that means for the promises."""
