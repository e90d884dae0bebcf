"""One attempt of a trial on some machines: hosts, seats, keepers, Ray."""
