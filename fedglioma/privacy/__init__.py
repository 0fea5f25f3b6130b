"""What protects the patients of a site from whoever sees what it sends: noise, its ledger, masked sums."""
