"""The command line: one thin module a command. What a command needs is imported when it runs, not before."""
