"""How data gets in: archives, tables, folders and other people's layouts."""
