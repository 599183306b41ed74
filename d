lora-r: 2
r: 4
