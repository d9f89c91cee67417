"""Read published datasets: one file per dataset, their cards, downloads and archives."""
