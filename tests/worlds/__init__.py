"""What tests are made of: tiny models, images and folders. Nothing is downloaded."""
