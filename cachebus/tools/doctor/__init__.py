"""`cachebus doctor`: what a server is set up to do, and what that means for the promises."""
