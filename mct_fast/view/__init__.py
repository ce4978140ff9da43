"""What people look at: a page about a run, what a store holds, event files."""
