_base_ = ['../_base_/networks/cn-pe_28x10.py', '../_base_/astronaut-512_50k.py']
