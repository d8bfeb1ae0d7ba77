"""What people bring: files, tables, archives and annotations, turned into rows."""
