_base_ = ['../_base_/networks/ln-pe_28x10.py', '../_base_/astronaut-512_50k.py']
