"""The command line: parse, call one library function, present. Nothing imports it."""
