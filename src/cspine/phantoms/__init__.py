"""Synthetic cervical CT with truth: anatomy, fractures, scanner."""
