"""Real servers to try things with, and for the tests: started by one call, gone with the process that started them."""
