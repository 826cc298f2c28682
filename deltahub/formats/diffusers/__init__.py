"""LoRA, LoHa and LoKr of image models, as diffusers, kohya's scripts and LyCORIS keep them.

keys        from the names in a file to a model, a layer and a tensor of the method
layers      the layers of a backbone by all names that these files have for them; original_names: those of Stable Diffusion's authors
parts       the part of a file that belongs to the backbone
low_rank    conversion of LoRA                         lycoris    conversion of LoHa and LoKr
reading     from a folder to a checkpoint
updates     a delta's LoRA layer by layer              export, kohya_export    the files of diffusers, and of kohya's scripts
"""
