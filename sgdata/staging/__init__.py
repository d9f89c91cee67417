"""Stage scenes: copy the windows of their files that a build needs to scratch, whatever opens and reads them."""
