"""MTT and MCT side by side on the same experts: what each reaches, after how many iterations and how many seconds."""
