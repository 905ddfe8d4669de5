"""Reading and checking judgements: any file becomes checked rows."""
