_base_ = ['../../inr/nvs/bn-pe_64x4_1400_blocks-64.py']
