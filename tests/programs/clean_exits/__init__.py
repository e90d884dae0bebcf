"""How often a driver that has done its work ends otherwise than it should: by a signal, late, or with another code."""
