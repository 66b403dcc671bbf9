"""The feature browser: every latent of an SAE on one offline page (`saebench dashboard`)."""
