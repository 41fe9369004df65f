"""What converters of data sets share, and readers for files from strangers."""
