"""The maker of tables: trains the runs that a table of results is made of, and renders it. A user of mixmatch."""
