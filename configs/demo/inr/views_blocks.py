_base_ = ['../../inr/nvs/bn-pe_64x4_2000_blocks-64.py']
