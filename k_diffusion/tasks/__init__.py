"""What a user asks for, a module for each: settings and one function."""
