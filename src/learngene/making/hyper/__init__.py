"""Training graph hypernetworks: on one data set under an ancestry (stage 1), then on several tasks (stage 2)."""
